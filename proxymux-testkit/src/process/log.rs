//! Events of a log in JSON, as tracing-subscriber's `json` format writes them: one object per
//! line with `level`, `target` and `fields`, the message being one of the fields.

use serde_json::{Map, Value};

/// One line of a JSON log.
///
/// ```
/// use proxymux_testkit::process::LogEvent;
///
/// let line = r#"{"timestamp":"2020-05-20T10:00:00Z","level":"INFO","target":"access",
///     "fields":{"message":"connection closed","path":"session","open_ms":3}}"#;
/// let event = LogEvent::parse(line).unwrap();
/// assert_eq!((event.target.as_str(), event.message.as_str()), ("access", "connection closed"));
/// assert_eq!(event.text("path"), Some("session"));
/// assert_eq!(event.number("open_ms"), Some(3));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LogEvent {
    /// `INFO` and so on.
    pub level: String,
    /// The module, or the target given by the code.
    pub target: String,
    /// `fields.message`.
    pub message: String,
    /// All fields, the message among them.
    pub fields: Map<String, Value>,
}

impl LogEvent {
    /// Reads one line; `None` where it is no event (a panic's text, a line in another format).
    pub fn parse(line: &str) -> Option<Self> {
        // Most lines of a text log do not get as far as the parser.
        if !line.starts_with('{') {
            return None;
        }
        let mut object: Map<String, Value> = serde_json::from_str(line).ok()?;
        let Some(Value::Object(fields)) = object.remove("fields") else {
            return None;
        };
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or("").to_owned();
        Some(Self {
            level: text(object.get("level")),
            target: text(object.get("target")),
            message: text(fields.get("message")),
            fields,
        })
    }

    /// A field that is text.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.fields.get(field)?.as_str()
    }

    /// A field that is a number, or text that is one (a field logged by its `Display`).
    pub fn number(&self, field: &str) -> Option<u64> {
        match self.fields.get(field)? {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.parse().ok(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }
}
