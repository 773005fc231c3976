//! Topic names and keys made from the parts of a fact.

use super::fact::Fact;
use super::route;

/// Text with placeholders for parts of a fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Field(Field),
}

/// A part of a fact that a placeholder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `{prefix}`: the message's prefix, or what stands for it in topic names.
    Prefix,
    /// `{aggregate_type}`.
    AggregateType,
    /// `{aggregate_id}`.
    AggregateId,
    /// `{event_type}`.
    EventType,
}

impl Field {
    /// What may make up a topic's name.
    pub const OF_TOPICS: &[Self] = &[Self::Prefix, Self::AggregateType, Self::EventType];
    /// What may make up a key.
    pub const OF_KEYS: &[Self] =
        &[Self::Prefix, Self::AggregateType, Self::AggregateId, Self::EventType];

    /// Its name, without braces.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prefix => "prefix",
            Self::AggregateType => "aggregate_type",
            Self::AggregateId => "aggregate_id",
            Self::EventType => "event_type",
        }
    }
}

/// What is wrong with a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A brace without its other one.
    #[error("a brace is not closed, or not opened")]
    Brace,
    /// A placeholder that there is not, or not here.
    #[error("{{{0}}} is none of the placeholders here")]
    Placeholder(String),
    /// Nothing at all.
    #[error("it is empty")]
    Empty,
}

impl Template {
    /// `{prefix}.{aggregate_type}`.
    pub fn topic() -> Self {
        let fields = [Part::Field(Field::Prefix), Part::Field(Field::AggregateType)];
        let [prefix, aggregate_type] = fields;
        Self(vec![prefix, Part::Literal(".".to_owned()), aggregate_type])
    }

    /// `{aggregate_id}`.
    pub fn key() -> Self {
        Self(vec![Part::Field(Field::AggregateId)])
    }

    /// Reads one in which these fields may stand.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &str, fields: &[Field]) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (literal, after) = match rest.split_once('{') {
                None => (rest, None),
                Some((literal, after)) => (literal, Some(after)),
            };
            if literal.contains('}') {
                return Err(TemplateError::Brace);
            }
            if !literal.is_empty() {
                parts.push(Part::Literal(literal.to_owned()));
            }
            let Some(after) = after else { break };
            let (name, after) = after.split_once('}').ok_or(TemplateError::Brace)?;
            let field = fields.iter().find(|field| field.name() == name);
            let field = field.ok_or_else(|| TemplateError::Placeholder(name.to_owned()))?;
            parts.push(Part::Field(*field));
            rest = after;
        }
        if parts.is_empty() { Err(TemplateError::Empty) } else { Ok(Self(parts)) }
    }

    /// The text between the placeholders.
    pub fn literals(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Literal(literal) => Some(literal.as_str()),
            Part::Field(_) => None,
        })
    }

    /// What it makes of any fact with this prefix, `*` standing for what only the fact decides.
    pub fn pattern(&self, prefix: &str) -> String {
        let parts = self.0.iter().map(|part| match part {
            Part::Literal(literal) => literal,
            Part::Field(Field::Prefix) => prefix,
            Part::Field(_) => "*",
        });
        parts.collect()
    }

    /// Fills `out` with what it makes of `fact`.
    pub fn render(&self, prefix: &str, fact: &Fact<'_>, out: &mut String) {
        out.clear();
        for part in &self.0 {
            out.push_str(match part {
                Part::Literal(literal) => literal,
                Part::Field(Field::Prefix) => prefix,
                Part::Field(Field::AggregateType) => &fact.aggregate_type,
                Part::Field(Field::AggregateId) => &fact.aggregate_id,
                Part::Field(Field::EventType) => &fact.event_type,
            });
        }
    }
}

/// How facts are named in Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Naming {
    /// Topics.
    pub topic: Template,
    /// Keys; none makes them all null.
    pub key: Option<Template>,
    /// Another text for a prefix, where `{prefix}` stands in a topic's name.
    pub prefixes: Vec<(String, String)>,
}

impl Default for Naming {
    fn default() -> Self {
        Self { topic: Template::topic(), key: Some(Template::key()), prefixes: Vec::new() }
    }
}

impl Naming {
    /// What stands for `prefix` in a topic's name.
    pub fn prefix<'a>(&'a self, prefix: &'a str) -> &'a str {
        let found = self.prefixes.iter().find(|(known, _)| known == prefix);
        found.map_or(prefix, |(_, other)| other)
    }

    /// Fills `out` with the name of the topic for a fact with this prefix; true if a topic can have it.
    #[inline]
    pub fn name_topic(&self, prefix: &str, fact: &Fact<'_>, out: &mut String) -> bool {
        self.topic.render(self.prefix(prefix), fact, out);
        route::is_topic(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &str) -> Result<String, TemplateError> {
        let content = br#"{"aggregate_type":"order","aggregate_id":"7","event_type":"paid"}"#;
        let fact = Fact::decode(content).unwrap();
        let mut out = "before".to_owned();
        Template::parse(template, Field::OF_KEYS)?.render("shop", &fact, &mut out);
        Ok(out)
    }

    #[test]
    fn placeholders_stand_for_parts_of_the_fact() {
        for (template, expected) in [
            ("{prefix}.{aggregate_type}", "shop.order"),
            ("facts", "facts"),
            ("eu-{event_type}_{aggregate_id}-x", "eu-paid_7-x"),
            ("{aggregate_id}{aggregate_id}", "77"),
        ] {
            assert_eq!(rendered(template).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn a_pattern_leaves_open_what_the_fact_decides() {
        for (template, expected) in [
            ("{prefix}.{aggregate_type}", "shop.*"),
            ("facts", "facts"),
            ("eu-{prefix}", "eu-shop"),
            ("{event_type}{aggregate_type}-x", "**-x"),
        ] {
            let template = Template::parse(template, Field::OF_TOPICS).unwrap();
            assert_eq!(template.pattern("shop"), expected);
        }
    }

    #[test]
    fn what_is_no_template_is_refused() {
        assert_eq!(rendered(""), Err(TemplateError::Empty));
        for text in ["{prefix", "prefix}", "a}b{prefix}", "{prefix}}"] {
            assert_eq!(rendered(text), Err(TemplateError::Brace), "{text}");
        }
        for name in ["", "Prefix", "id", "{prefix"] {
            let error = TemplateError::Placeholder(name.to_owned());
            assert_eq!(rendered(&format!("a{{{name}}}")), Err(error), "{name}");
        }
        let of_topics = Template::parse("{aggregate_id}", Field::OF_TOPICS);
        assert_eq!(of_topics, Err(TemplateError::Placeholder("aggregate_id".to_owned())));
    }

    #[test]
    fn the_defaults_are_what_they_say() {
        assert_eq!(
            Template::parse("{prefix}.{aggregate_type}", Field::OF_TOPICS),
            Ok(Template::topic())
        );
        assert_eq!(Template::parse("{aggregate_id}", Field::OF_KEYS), Ok(Template::key()));
    }
}
