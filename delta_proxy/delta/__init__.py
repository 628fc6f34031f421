"""What a Delta table is made of: log, index, partition values."""
