"""What the whole project uses and nothing of it ships to the Hub: whole files, command lines, processes."""
