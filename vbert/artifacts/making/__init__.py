"""HOW it is made: the plan, the engine that follows it, builds, units and the child processes that compute."""
