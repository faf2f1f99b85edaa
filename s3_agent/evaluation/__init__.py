"""What a run showed: paired statistics, the summary, the closing table."""
