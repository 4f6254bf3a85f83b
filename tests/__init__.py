"""What the test programs written in Python share."""
