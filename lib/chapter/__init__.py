"""What only notebooks use: the figures that recur, the ledger."""
