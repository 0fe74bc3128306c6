"""Results of a study on examples that its search never used: scores, figures, a page, exported checkpoints."""
