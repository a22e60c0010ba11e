"""What crosses a socket: frames, their packing (standard library only), and the API's schemas."""
