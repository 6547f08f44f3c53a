//! What was measured, for people and for programs.

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value as Json, json};

/// Lines, figures and targets of a run.
#[derive(Default)]
pub(crate) struct Report {
    lines: Vec<String>,
    json: Map<String, Json>,
    targets: Vec<Target>,
}

/// What a figure should be.
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

struct Target {
    what: String,
    goal: Goal,
    measured: f64,
    unit: &'static str,
}

impl Target {
    fn is_met(&self) -> bool {
        match self.goal {
            Goal::AtLeast(least) => self.measured >= least,
            Goal::AtMost(most) => self.measured <= most,
        }
    }

    fn verdict(&self) -> &'static str {
        if self.is_met() { "met" } else { "NOT MET" }
    }

    fn line(&self) -> String {
        let Self { what, goal, measured, unit } = self;
        let (sign, goal) = match goal {
            Goal::AtLeast(least) => ("≥", least),
            Goal::AtMost(most) => ("≤", most),
        };
        let verdict = self.verdict();
        let goal = format!("{sign} {goal} {unit}");
        format!("  {what:<60} {goal:<16} {measured:>10.2} {unit:<7} {verdict}")
    }
}

impl Report {
    pub(crate) fn line(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    /// A section of the JSON.
    pub(crate) fn json(&mut self, section: &str, figures: Json) {
        self.json.insert(section.to_owned(), figures);
    }

    /// Sets a figure beside what it should be.
    pub(crate) fn target(&mut self, what: impl Into<String>, goal: Goal, measured: f64, unit: &'static str) {
        self.targets.push(Target { what: what.into(), goal, measured, unit });
    }

    pub(crate) fn text(&self) -> String {
        let mut text: String = self.lines.iter().map(|line| format!("{line}\n")).collect();
        if !self.targets.is_empty() {
            text += "\nTargets, for a 2-core machine, and what was measured\n";
        }
        for target in &self.targets {
            text += &target.line();
            text += "\n";
        }
        text
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let target = |target: &Target| {
            let (kind, goal) = match target.goal {
                Goal::AtLeast(goal) => ("at_least", goal),
                Goal::AtMost(goal) => ("at_most", goal),
            };
            json!({ "what": target.what, kind: goal, "measured": target.measured,
                    "unit": target.unit, "met": target.is_met() })
        };
        let mut json = self.json.clone();
        json.insert("targets".into(), self.targets.iter().map(target).collect());
        Ok(std::fs::write(path, format!("{:#}\n", Json::Object(json)))?)
    }
}
