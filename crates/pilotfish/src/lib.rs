//! Pilotfish: research crates for making language models cheap to run and cheap to supervise.
