"""Our numbers beside other projects': the table of accuracy and cost, and how long scoring takes."""
