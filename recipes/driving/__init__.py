"""Closed-loop driving in the synthetic world: who drives, who judges, what is written and printed."""
