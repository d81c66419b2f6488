"""What the planner's recipes share."""
