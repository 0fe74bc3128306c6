"""What a study found, on examples that its search never saw: numbers, figures, a page, exported checkpoints."""
