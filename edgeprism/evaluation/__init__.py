"""Measuring: which stage fails, perception or reasoning? `edgeprism eval`.

tsv.py → questions.py → run.py (matrix.py says what) → scoring.py → statistics.py, analysis.py →
report.py, page.py.
"""
