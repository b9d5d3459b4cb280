"""The scheduler: a pure state machine. Events and `now` in, commands out; no clock, no I/O, no randomness of its own."""
