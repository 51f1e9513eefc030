package link

import "io"

// copySize is how much Copy reads or writes at once.
const copySize = 128 << 10

// Copy copies until the end of from. Streams of a multiplexer have the bytes in
// a buffer of their own; for all others Copy has one. io.Copy would take the
// shortcuts that files and sockets offer, whose buffers are smaller.
func Copy(to io.Writer, from io.Reader) (int64, error) {
	if st, ok := from.(*stream); ok {
		return st.writeTo(to)
	}
	return io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, copySize))
}

// CopyToEnd copies until the end of from and passes the end on. That one side has
// gone is not an error: it is how streams end.
func CopyToEnd(to Stream, from io.Reader) error {
	_, err := Copy(to, from)
	if cerr := to.CloseWrite(); err == nil && !IsClosed(cerr) {
		err = cerr
	}
	if IsClosed(err) {
		return nil
	}
	return err
}
