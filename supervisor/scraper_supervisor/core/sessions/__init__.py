"""What workers say on their connections, from hello to goodbye."""
