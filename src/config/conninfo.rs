//! libpq's connection strings: URLs and keyword/value pairs.
//!
//! Written after <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING> and
//! checked against libpq itself. Nothing here knows what a parameter means; errors never repeat a
//! piece of the text that may belong to a badly quoted password.

use percent_encoding::percent_decode_str;

/// What a connection string says: keywords and values; a later one replaces an earlier one.
pub(super) type Pairs = Vec<(String, String)>;

/// Cuts the password out of a URL, generously: a password that was not percent-encoded is cut too.
///
/// Keyword/value strings cannot be cut safely once their quoting is broken, so they are not shown.
pub(super) fn redact(text: &str) -> String {
    let text = text.trim();
    let Some((scheme, rest)) = text.split_once("://") else {
        return "(keyword/value string)".to_owned();
    };
    let (user, rest) = match rest.rsplit_once('@') {
        Some((userinfo, rest)) => match userinfo.split_once(':') {
            Some((user, _)) => (format!("{user}:***@"), rest),
            None => (format!("{userinfo}@"), rest),
        },
        None => (String::new(), rest),
    };
    let (place, query) = match rest.split_once('?') {
        Some((place, query)) => (place, Some(query)),
        None => (rest, None),
    };
    let query = query.map(|query| {
        let mut shown = Vec::new();
        for pair in query.split('&') {
            match pair.split_once('=') {
                // Also catches keywords spelt with percent-encoded letters. What follows may be the
                // rest of a password with an unescaped `&`.
                Some((key, _)) if is_secret(key) => {
                    shown.push(format!("{key}=***"));
                    break;
                }
                _ => shown.push(pair.to_owned()),
            }
        }
        format!("?{}", shown.join("&"))
    });
    format!("{scheme}://{user}{place}{}", query.unwrap_or_default())
}

/// Reads a connection string in either form.
pub(super) fn parse(text: &str) -> Result<Pairs, String> {
    // A value from a file or a secret store often ends in a newline.
    let text = text.trim();
    match text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
        Some(rest) => parse_url(rest).map_err(|error| {
            // The userinfo ends at the first `@` before a `/`. Another one, or one behind a `/`, is
            // how an unescaped password looks, and then any piece may be part of it.
            let after_userinfo = rest.split_once(['@', '/']).map(|(_, after)| after);
            let error = if after_userinfo.is_some_and(|after| after.contains('@')) {
                "it has an @ in an unexpected place".to_owned()
            } else {
                error
            };
            let hint = if rest.contains('@') {
                "; percent-encode what is special in a password (@ is %40, / is %2F, : is %3A, \
                 % is %25)"
            } else {
                ""
            };
            format!("{error}, in {}{hint}", redact(text))
        }),
        None => parse_keywords(text),
    }
}

fn parse_url(rest: &str) -> Result<Pairs, String> {
    let mut pairs = Pairs::new();
    let mut store = |keyword: &str, raw: &str| -> Result<(), String> {
        if !raw.is_empty() {
            pairs.push((keyword.to_owned(), decode(raw)?));
        }
        Ok(())
    };

    let rest = match rest.split_once('@') {
        Some((userinfo, rest)) if !userinfo.contains('/') => {
            let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
            store("user", user)?;
            store("password", password)?;
            rest
        }
        _ => rest,
    };

    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    // Brackets hide nothing: an IPv6 address has neither `/` nor `?`.
    let (netloc, rest) = rest.split_at(end);
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for place in netloc.split(',') {
        let (host, port) = match place.strip_prefix('[') {
            Some(literal) => {
                let (host, after) =
                    literal.split_once(']').ok_or("the IPv6 address has no closing ]")?;
                if host.is_empty() {
                    return Err("there is no IPv6 address between [ and ]".into());
                }
                let port = match after.strip_prefix(':') {
                    Some(port) => port,
                    None if after.is_empty() => "",
                    None => return Err("only :port may follow the ] of an IPv6 address".into()),
                };
                (host, port)
            }
            None => place.split_once(':').unwrap_or((place, "")),
        };
        hosts.push(host);
        ports.push(port);
    }
    let (hosts, ports) = (hosts.join(","), ports.join(","));
    store("host", &hosts)?;
    store("port", &ports)?;

    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    store("dbname", path.strip_prefix('/').unwrap_or(path))?;

    let mut after_password = false;
    for pair in query.split('&').filter(|_| !query.is_empty()) {
        let (keyword, value) = pair.split_once('=').ok_or_else(|| {
            if after_password { AFTER_PASSWORD } else { "a parameter after ? has no =" }.to_owned()
        })?;
        if value.contains('=') {
            return Err("a parameter after ? has two =; percent-encode the second as %3D".into());
        }
        let (keyword, value) = (decode(keyword)?, decode(value)?);
        // What JDBC calls it; libpq reads it the same way.
        let (keyword, value) = match (keyword.as_str(), value.as_str()) {
            ("ssl", "true") => ("sslmode".to_owned(), "require".to_owned()),
            _ => (keyword, value),
        };
        check_known(&keyword, after_password)?;
        after_password = keyword.contains("password");
        pairs.push((keyword, value));
    }
    Ok(pairs)
}

const NEITHER: &str = "it is neither a postgres:// URL nor a keyword=value string";

const AFTER_PASSWORD: &str = "what follows the password is no parameter; quote or percent-encode a \
                              password with special characters";

fn check_known(keyword: &str, after_password: bool) -> Result<(), String> {
    if super::postgres::is_keyword(keyword) {
        return Ok(());
    }
    if after_password {
        return Err(AFTER_PASSWORD.into());
    }
    // What is no word may be a piece of another product's URL, password included.
    if !keyword.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(NEITHER.into());
    }
    Err(format!("unknown parameter {keyword:?}"))
}

fn decode(raw: &str) -> Result<String, String> {
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let (high, low) = (bytes.next(), bytes.next());
            let is_hex = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_hexdigit());
            if !is_hex(high) || !is_hex(low) {
                return Err("a % is not followed by two hexadecimal digits".into());
            }
            if (high, low) == (Some(b'0'), Some(b'0')) {
                return Err("%00 is not allowed".into());
            }
        }
    }
    percent_decode_str(raw)
        .decode_utf8()
        .map(Into::into)
        .map_err(|_| "the percent-encoded bytes are not UTF-8".into())
}

/// `keyword = 'value'` pairs, quoted and escaped as libpq's `conninfo_parse` does it.
fn parse_keywords(text: &str) -> Result<Pairs, String> {
    let mut pairs = Pairs::new();
    let mut chars = text.chars().peekable();
    let mut after_password = false;
    loop {
        while chars.next_if(char::is_ascii_whitespace).is_some() {}
        if chars.peek().is_none() {
            return Ok(pairs);
        }
        let mut keyword = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=' && !c.is_ascii_whitespace()) {
            keyword.push(c);
        }
        while chars.next_if(char::is_ascii_whitespace).is_some() {}
        if chars.next_if_eq(&'=').is_none() {
            return Err(if pairs.is_empty() {
                NEITHER.into()
            } else if after_password {
                AFTER_PASSWORD.into()
            } else {
                "a keyword is not followed by =; quote values with spaces in '...'".to_owned()
            });
        }
        check_known(&keyword, after_password)?;
        while chars.next_if(char::is_ascii_whitespace).is_some() {}
        let mut value = String::new();
        if chars.next_if_eq(&'\'').is_some() {
            loop {
                match chars.next() {
                    Some('\'') => break,
                    Some('\\') => value.extend(chars.next()),
                    Some(c) => value.push(c),
                    None => {
                        return Err(format!(
                            "the quote around the value of {keyword} is not closed"
                        ));
                    }
                }
            }
        } else {
            while let Some(c) = chars.next_if(|c| !c.is_ascii_whitespace()) {
                if c == '\\' { value.extend(chars.next()) } else { value.push(c) }
            }
        }
        after_password = keyword.contains("password");
        pairs.push((keyword, value));
    }
}

/// Keywords whose values are not shown; one that is spelt with percent-encoded letters may be any of them.
fn is_secret(key: &str) -> bool {
    ["pass", "secret", "_key", "%"].iter().any(|part| key.contains(part))
}
