"""The commands of the races: flags, tables and receipts."""
