"""What a run did, as data, and what is drawn from it: tables for the terminal and one HTML page."""
