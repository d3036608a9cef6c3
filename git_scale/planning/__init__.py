"""Does a run fit, how long will it take, what would be better: asked before it starts (a map: docs/planning.md)."""
