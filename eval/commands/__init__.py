"""What is typed at a shell: arguments, and a file a command."""
