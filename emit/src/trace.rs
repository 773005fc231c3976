use crate::envelope::Protobuf;

/// The `traceparent` of W3C Trace Context, version 00.
///
/// <https://www.w3.org/TR/trace-context/#traceparent-header>
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Traceparent<'a> {
    text: &'a str,
    trace_id: &'a str,
    parent_id: &'a str,
}

impl<'a> Traceparent<'a> {
    /// None if it is malformed: "the vendor MUST NOT use it", and nobody's transaction fails for a trace.
    fn parse(text: &'a str) -> Option<Self> {
        let field = |text: &str, digits: usize| {
            text.len() == digits
                && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let id = |text: &str, digits| field(text, digits) && text.bytes().any(|byte| byte != b'0');
        let mut fields = text.split('-');
        let (version, trace_id) = (fields.next()?, fields.next()?);
        let (parent_id, flags) = (fields.next()?, fields.next()?);
        let well_formed = version == "00"
            && id(trace_id, 32)
            && id(parent_id, 16)
            && field(flags, 2)
            && fields.next().is_none();
        well_formed.then_some(Self { text, trace_id, parent_id })
    }
}

/// The field `trace_info` of the envelope, where there is a trace to be told.
pub(crate) fn trace_info(traceparent: Option<&str>, tracestate: Option<&str>) -> Option<Protobuf> {
    let Traceparent { text, trace_id, parent_id } = Traceparent::parse(traceparent?)?;
    let mut trace = Protobuf::with_capacity(160);
    trace.bytes(1, trace_id.as_bytes());
    trace.bytes(2, parent_id.as_bytes());
    trace.entry(3, "traceparent", text);
    if let Some(state) = tracestate.filter(|state| !state.is_empty() && !state.contains('\0')) {
        trace.entry(3, "tracestate", state);
    }
    Some(trace)
}
