"""Show a run to people: its rows, the images behind them, pages and sheets."""
