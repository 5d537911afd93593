"""A server that answers as the recorded one did."""
