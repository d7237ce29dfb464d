"""Which worker does what, and when: no Ray, no storage; it can be simulated."""
