"""Lines of Spark, what they need, and the program that they run."""
