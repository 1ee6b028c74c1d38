"""What every kgents service stands on, by concept; it holds no decision of any one service."""
