//! How the log's file is rotated: `--log-rotation-config-json`, with etcd's names, defaults and
//! refusals.

use serde_json::Value;

const MEGABYTE: u64 = 1 << 20;
const DEFAULT_MEGABYTES: u64 = 100;

/// When a file is full, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// A file is put aside before it has more.
    pub max_bytes: u64,
    /// Files that were put aside longer ago are removed; 0: none for that.
    pub max_age_days: u64,
    /// So many of them are kept; 0: all.
    pub max_backups: u64,
    /// Whether their names have the machine's time instead of UTC.
    pub local_time: bool,
    /// Whether they are compressed by gzip.
    pub compress: bool,
}

impl Rotation {
    /// # Errors
    /// The text is no JSON object, or a field has another type or a negative number.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| {
            let reason = match error.is_eof() {
                true => "unexpected end of JSON input".to_owned(),
                false => error.to_string(),
            };
            format!("improperly formatted log rotation config: {reason}")
        })?;
        let Value::Object(fields) = value else {
            return Err(invalid(format!(
                "json: cannot unmarshal {} into Go value of type embed.logRotationConfig",
                name_of(&value)
            )));
        };
        let mut rotation = Rotation {
            max_bytes: DEFAULT_MEGABYTES * MEGABYTE,
            max_age_days: 0,
            max_backups: 0,
            local_time: false,
            compress: false,
        };
        for (name, value) in &fields {
            let name = name.to_ascii_lowercase();
            match name.as_str() {
                _ if value.is_null() => {}
                "maxsize" => match number(&name, value)? {
                    0 => {}
                    megabytes => rotation.max_bytes = megabytes.saturating_mul(MEGABYTE),
                },
                "maxage" => rotation.max_age_days = number(&name, value)?,
                "maxbackups" => rotation.max_backups = number(&name, value)?,
                "localtime" => rotation.local_time = switch(&name, value)?,
                "compress" => rotation.compress = switch(&name, value)?,
                _ => {}
            }
        }
        Ok(rotation)
    }
}

fn number(name: &str, value: &Value) -> Result<u64, String> {
    match (value.as_u64(), value.as_i64()) {
        (Some(number), _) => Ok(number),
        // etcd takes it, and its log stays empty or its files are removed at once.
        (None, Some(_)) => Err(invalid(format!("{name} must not be negative"))),
        (None, None) => Err(wrong_type(name, value, "int")),
    }
}

fn switch(name: &str, value: &Value) -> Result<bool, String> {
    value
        .as_bool()
        .ok_or_else(|| wrong_type(name, value, "bool"))
}

fn wrong_type(name: &str, value: &Value, wanted: &str) -> String {
    let found = match value {
        Value::Number(number) if wanted == "int" => format!("number {number}"),
        _ => name_of(value).to_owned(),
    };
    invalid(format!(
        "json: cannot unmarshal {found} into Go struct field logRotationConfig.Logger.{name} of type {wanted}"
    ))
}

fn invalid(reason: String) -> String {
    format!("invalid log rotation config: {reason}")
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_etcds_names_defaults_and_refusals() {
        let parsed = Rotation::parse;
        let default = Rotation {
            max_bytes: 100 << 20,
            max_age_days: 0,
            max_backups: 0,
            local_time: false,
            compress: false,
        };
        assert_eq!(parsed("{}"), Ok(default.clone()));
        assert_eq!(parsed(r#"{"maxsize": 0, "filename": "x"}"#), Ok(default));
        let all = r#"{"MaxSize": 1, "maxage": 2, "maxbackups": 3, "localtime": true, "compress": true, "maxbackups": 4}"#;
        assert_eq!(
            parsed(all),
            Ok(Rotation {
                max_bytes: 1 << 20,
                max_age_days: 2,
                max_backups: 4,
                local_time: true,
                compress: true,
            })
        );
        for (text, refusal) in [
            (
                r#"{"maxsize": "a"}"#,
                "invalid log rotation config: json: cannot unmarshal string into Go struct field logRotationConfig.Logger.maxsize of type int",
            ),
            (
                r#"{"maxsize": 1.5}"#,
                "invalid log rotation config: json: cannot unmarshal number 1.5 into Go struct field logRotationConfig.Logger.maxsize of type int",
            ),
            (
                r#"{"compress": 1}"#,
                "invalid log rotation config: json: cannot unmarshal number into Go struct field logRotationConfig.Logger.compress of type bool",
            ),
            (
                "[]",
                "invalid log rotation config: json: cannot unmarshal array into Go value of type embed.logRotationConfig",
            ),
            (
                "null",
                "invalid log rotation config: json: cannot unmarshal null into Go value of type embed.logRotationConfig",
            ),
            (
                r#"{"maxage": -1}"#,
                "invalid log rotation config: maxage must not be negative",
            ),
            (
                "",
                "improperly formatted log rotation config: unexpected end of JSON input",
            ),
            (
                "{maxsize: 1}",
                "improperly formatted log rotation config: key must be a string at line 1 column 2",
            ),
        ] {
            assert_eq!(parsed(text), Err(refusal.to_owned()), "{text}");
        }
    }
}
