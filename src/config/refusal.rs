//! Why a configuration is refused. Texts and exit codes are etcd's, since scripts and operators
//! depend on them.

use super::go_syntax::quote;
use super::log::Level;
use super::note::Note;

/// Why a configuration was refused, with etcd's exit code and output format for each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A mistake of syntax: exit 2, this line, the usage text.
    #[error("{0}")]
    Usage(String),
    /// Exit 1, this line as it is.
    #[error("{0}")]
    Plain(String),
    /// An invalid value: exit 1, a log line `failed to verify flags`.
    #[error("{0}")]
    Verify(String),
    /// As `Verify`: a word that is not a flag, with the commands that it may have been meant as.
    #[error("{} is not a valid flag", quote(word))]
    Stray { word: String, commands: Vec<String> },
    /// As `Verify`, with one more line.
    #[error("--advertise-client-urls is required when --listen-client-urls is set explicitly")]
    UnsetAdvertise,
    /// An environment variable and its flag at once: exit 1, a fatal log line.
    #[error("environment variable {0} is shadowed by its flag")]
    Shadowed(String),
    /// What etcd only finds while starting: exit 1, a fatal log line `discovery failed`.
    #[error("{0}")]
    Start(String),
    /// What it finds when the member runs and is to listen for clients: `listener failed`.
    #[error("{0}")]
    Listen(String),
}

impl Refusal {
    pub fn exit_code(&self) -> u8 {
        match self {
            Refusal::Usage(_) => 2,
            _ => 1,
        }
    }

    /// The log lines for it; none if it is not logged.
    pub fn notes(&self) -> Vec<Note> {
        let verify = || Note::warn("failed to verify flags").with("error", self.to_string());
        match self {
            Refusal::Usage(_) | Refusal::Plain(_) => Vec::new(),
            Refusal::Verify(_) => vec![verify()],
            Refusal::Stray { commands, .. } if commands.is_empty() => vec![verify()],
            Refusal::Stray { commands, .. } => {
                vec![verify().with("commands", commands.clone())]
            }
            Refusal::UnsetAdvertise => vec![
                verify(),
                Note::warn("advertise client URLs are not set").with("error", self.to_string()),
            ],
            Refusal::Shadowed(name) => vec![
                Note::new(
                    Level::Fatal,
                    "conflicting environment variable is shadowed by corresponding command-line flag (either unset environment variable or disable flag))",
                )
                .with("environment-variable", name.as_str()),
            ],
            Refusal::Start(text) => {
                vec![Note::new(Level::Fatal, "discovery failed").with("error", text.as_str())]
            }
            Refusal::Listen(text) => {
                vec![Note::new(Level::Fatal, "listener failed").with("error", text.as_str())]
            }
        }
    }
}
