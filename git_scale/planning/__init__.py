"""Does a run fit, how long will it take, and what would be better: asked before it starts."""
