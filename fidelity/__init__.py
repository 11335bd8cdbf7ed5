"""What translate_tasks.py needs: what to protect, the checks of a round trip, and the report."""
