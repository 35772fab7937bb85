"""Write predictions to Parquet, each unit exactly once, and keep the run folder."""
