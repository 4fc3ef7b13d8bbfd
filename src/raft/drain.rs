//! raft-rs logs through slog; its lines go to the same place as ours.

use std::fmt::Write as _;

/// See the module.
pub struct TracingDrain;

impl slog::Drain for TracingDrain {
    type Ok = ();
    type Err = slog::Never;

    fn log(
        &self,
        record: &slog::Record<'_>,
        values: &slog::OwnedKVList,
    ) -> Result<(), slog::Never> {
        let mut text = Fields(record.msg().to_string());
        // Writing to a string cannot fail.
        let _ = slog::KV::serialize(&record.kv(), record, &mut text);
        let _ = slog::KV::serialize(values, record, &mut text);
        let text = text.0;
        match record.level() {
            slog::Level::Critical | slog::Level::Error => {
                tracing::error!(logger = "raft", "{text}")
            }
            slog::Level::Warning => tracing::warn!(logger = "raft", "{text}"),
            slog::Level::Info => tracing::info!(logger = "raft", "{text}"),
            slog::Level::Debug | slog::Level::Trace => tracing::debug!(logger = "raft", "{text}"),
        }
        Ok(())
    }
}

struct Fields(String);

impl slog::Serializer for Fields {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        let _ = write!(self.0, " {key}={value}");
        Ok(())
    }
}
