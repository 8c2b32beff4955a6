"""Files, processes and signals of the operating system, and small helpers of text."""
