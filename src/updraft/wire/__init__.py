"""What crosses a socket: frames and their packing (standard library only), and the API's schemas."""
