"""What planning, scoring plans and publishing a planner share."""
