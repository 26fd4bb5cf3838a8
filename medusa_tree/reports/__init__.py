"""Reports: what was measured and planned, as tables, plots and a page."""
