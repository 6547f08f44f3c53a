//! Deep agents and agent loops as plain nodes.
