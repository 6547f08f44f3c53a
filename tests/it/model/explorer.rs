//! Walks every state that can be reached, breadth first, so that the first way to a broken promise is a shortest.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasherDefault, Hasher},
    rc::Rc,
};

use super::{invariants::Invariant, rules::Rules, state::State, steps::steps};

/// More states than any test needs: a model that grew by mistake ends with words instead of without memory.
const MOST_STATES: usize = 1_000_000;

/// A promise that was broken, and a shortest way there.
pub(super) struct Violation {
    pub(super) invariant: Invariant,
    /// The steps in words.
    pub(super) steps: Vec<String>,
    /// Where they lead.
    pub(super) state: State,
    /// States that had been seen by then.
    pub(super) states: usize,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?} is broken in {} steps ({} states)", self.invariant, self.steps.len(), self.states)?;
        for (number, step) in self.steps.iter().enumerate() {
            writeln!(f, "{:3}. {step}", number + 1)?;
        }
        write!(f, "{:?}", self.state)
    }
}

/// What has been seen. States are known by their numbers, in the order of discovery.
struct Explored {
    rules: Rules,
    start: State,
    states: Vec<Rc<State>>,
    numbers: HashMap<Rc<State>, usize, BuildHasherDefault<Quick>>,
    /// From where each was first reached.
    before: Vec<usize>,
    /// For each state, those with a step to it.
    leading_to: Vec<Vec<usize>>,
}

/// Whether `checked` hold in every state with these faults, and a quiet state can be reached from each.
/// Gives the number of states.
pub(super) fn explore(rules: Rules, checked: &[Invariant]) -> Result<usize, Box<Violation>> {
    let mut explored = Explored::new(rules);
    let mut number = 0;
    while let Some(state) = explored.states.get(number).cloned() {
        for (_, next) in steps(rules, &state) {
            let next = explored.note(next.unnamed(), number);
            if let Some(next) = next
                && let Some(broken) =
                    checked.iter().find(|invariant| !invariant.holds(&explored.states[next]))
            {
                return Err(explored.violation(*broken, next));
            }
        }
        assert!(explored.states.len() <= MOST_STATES, "the model has become too large to be walked");
        number += 1;
    }
    match explored.stuck() {
        None => Ok(explored.states.len()),
        Some(stuck) => Err(explored.violation(Invariant::BecomesQuiet, stuck)),
    }
}

impl Explored {
    fn new(rules: Rules) -> Self {
        let start = State::start(rules.jobs, rules.count);
        let first = Rc::new(start.clone());
        Self {
            rules,
            start,
            states: vec![first.clone()],
            numbers: HashMap::from_iter([(first, 0)]),
            before: vec![0],
            leading_to: vec![Vec::new()],
        }
    }

    /// Notes a step; gives the state's number if it is new.
    fn note(&mut self, state: State, from: usize) -> Option<usize> {
        if let Some(known) = self.numbers.get(&state) {
            self.leading_to[*known].push(from);
            return None;
        }
        let (state, number) = (Rc::new(state), self.states.len());
        self.states.push(state.clone());
        self.numbers.insert(state, number);
        self.before.push(from);
        self.leading_to.push(vec![from]);
        Some(number)
    }

    /// The first state from which no quiet one can be reached.
    fn stuck(&self) -> Option<usize> {
        let mut open: Vec<usize> = (0..self.states.len()).filter(|n| self.states[*n].is_quiet()).collect();
        let mut becomes_quiet = vec![false; self.states.len()];
        while let Some(number) = open.pop() {
            if !std::mem::replace(&mut becomes_quiet[number], true) {
                open.extend(&self.leading_to[number]);
            }
        }
        becomes_quiet.iter().position(|becomes| !becomes)
    }

    fn violation(&self, invariant: Invariant, number: usize) -> Box<Violation> {
        let mut way = Vec::new();
        let mut at = number;
        while at != 0 {
            way.push(self.states[at].clone());
            at = self.before[at];
        }
        // Walked again without renaming, so that a worker keeps its name.
        let mut state = self.start.clone();
        let mut told = Vec::new();
        for next in way.iter().rev() {
            let mut steps = steps(self.rules, &state).into_iter();
            let step = steps.find(|(_, after)| after.clone().unnamed() == **next);
            let (step, after) = step.expect("the way was walked before");
            told.push(step.to_string());
            state = after;
        }
        Box::new(Violation { invariant, steps: told, state, states: self.states.len() })
    }
}

/// Multiplies and turns. The standard one took most of the time of these tests, and guards against senders that
/// are not here.
#[derive(Default)]
struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
