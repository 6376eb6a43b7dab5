"""What happened and how things are: events as frozen data, and who listens to them."""
