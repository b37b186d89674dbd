"""The parts of gen-schema.py: notation and comments are read, model and schema made of them, checked, and written as
tables and reference."""
