"""How many replicas there should be: pure functions of what was observed and the time, shared with the simulator."""
