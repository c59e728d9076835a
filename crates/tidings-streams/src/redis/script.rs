//! The scripts: what has to be one step for everybody is one for the server.

use redis::Cmd;

/// A script with all that it begins with. Known to the server by its hash, and told again where that was forgotten.
#[derive(Debug)]
pub(super) struct Script {
    code: String,
    hash: String,
}

impl Script {
    fn new(parts: &[&str]) -> Self {
        let code = parts.concat();
        let hash = redis::Script::new(&code).get_hash().to_owned();
        Self { code, hash }
    }

    /// Tells the server.
    pub(super) fn load(&self) -> Cmd {
        let mut command = redis::cmd("SCRIPT");
        command.arg("LOAD").arg(&self.code);
        command
    }
}

/// Whose clock scripts go by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Clock {
    /// The server's.
    #[default]
    Server,
    /// The suite's, which says the moment by a key of the server.
    #[cfg(feature = "conformance")]
    Given,
}

impl Clock {
    fn part(self) -> &'static str {
        match self {
            Self::Server => include_str!("lua/server_clock.lua"),
            #[cfg(feature = "conformance")]
            Self::Given => include_str!("lua/given_clock.lua"),
        }
    }
}

/// What all scripts begin with, before what they read the clock by.
const BASE: &str = include_str!("lua/base.lua");

macro_rules! scripts {
    ($($name:ident: $($file:literal)*;)*) => {
        #[derive(Debug)]
        pub(super) struct Scripts {
            clock: Clock,
            $(pub(super) $name: Script,)*
        }

        impl Scripts {
            pub(super) fn new(clock: Clock) -> Self {
                Self {
                    clock,
                    $($name: Script::new(&[
                        BASE, clock.part(), $(include_str!(concat!("lua/", $file, ".lua"))),*
                    ]),)*
                }
            }

            /// Whose clock they go by.
            pub(super) fn clock(&self) -> Clock {
                self.clock
            }

            pub(super) fn all(&self) -> Vec<&Script> {
                vec![$(&self.$name),*]
            }
        }
    };
}

scripts! {
    publish: "publish";
    receive: "open" "receive";
    peek: "open" "peek";
    give_back: "open" "give_back";
    settle: "open" "settle";
    claim: "open" "claim";
    pending: "open" "pending";
    groups: "open" "groups";
    place: "open" "place";
    retain: "open" "retain";
    bury: "open" "bury";
    retry: "open" "retry";
    topic: "open" "topic";
}

/// What a script is run with.
pub(super) struct Call {
    pub(super) command: Cmd,
}

impl Call {
    /// All keys have the hash tag of the one that is named here: scripts make up their names themselves, for they know
    /// only when they run which topic and group it is about.
    pub(super) fn new(script: &Script, base: &str, topic: &str, group: &str) -> Self {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&script.hash).arg(1).arg(format!("{base}topics")).arg(base).arg(topic).arg(group);
        Self { command }
    }

    pub(super) fn arg(mut self, argument: impl redis::ToRedisArgs) -> Self {
        self.command.arg(argument);
        self
    }
}
