"""What reproduce.py needs: item outcomes, measures over them, comparisons, tables and figures."""
