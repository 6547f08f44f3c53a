//! Channels that run nodes, as LangGraph calls them: the names stand in every checkpoint, and Python reads them.

use crate::value::Name;

const BRANCH: &str = "branch:to:";
const JOIN: &str = "join:";

/// What the name of a channel says that runs a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger<'a> {
    /// `branch:to:<node>`: runs the node after any write.
    Branch(&'a str),
    /// `join:<a>+<b>:<node>`: runs the node after all of these have arrived.
    Join {
        /// The sources, with `+` between them.
        names: &'a str,
        /// The node it runs.
        node: &'a str,
    },
}

impl<'a> Trigger<'a> {
    /// What `channel` runs; `None` for a channel that runs nothing.
    pub fn of(channel: &'a str) -> Option<Self> {
        if let Some(node) = channel.strip_prefix(BRANCH) {
            return Some(Self::Branch(node));
        }
        let (names, node) = channel.strip_prefix(JOIN)?.rsplit_once(':')?;
        Some(Self::Join { names, node })
    }

    /// The name of the channel.
    pub fn channel(self) -> Name {
        match self {
            Self::Branch(node) => format!("{BRANCH}{node}").into(),
            Self::Join { names, node } => format!("{JOIN}{names}:{node}").into(),
        }
    }
}

/// Whether a channel belongs to the machinery and not to the state.
pub fn is_internal(channel: &str) -> bool {
    channel.starts_with("__") || Trigger::of(channel).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_it_runs_and_is_written_so_again() {
        let named = [
            ("branch:to:each.done", Trigger::Branch("each.done")),
            ("join:b+a:j", Trigger::Join { names: "b+a", node: "j" }),
        ];
        for (channel, trigger) in named {
            assert_eq!(Trigger::of(channel), Some(trigger));
            assert_eq!(&*trigger.channel(), channel);
        }
        assert_eq!(["messages", "__start__", "branch:from:a", "join:a"].map(Trigger::of), [None; 4]);
    }

    #[test]
    fn the_machinery_is_told_from_the_state() {
        assert!(["branch:to:main", "join:a+b:c", "__input__"].into_iter().all(is_internal));
        assert!(!is_internal("messages"));
    }
}
