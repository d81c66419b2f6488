"""What asking, scoring, comparing and publishing share."""
