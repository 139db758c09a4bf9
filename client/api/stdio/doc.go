// Package stdio is how the standard streams of one process in a guest travel
// over one connection, from the client through volantd to the guest's agent:
// frames on a full-duplex byte stream, which both sides get by switching an
// HTTP/1.1 connection to the protocol named Protocol (RFC 9110, section 7.8).
// It knows neither processes nor terminals, and imports the standard library
// only, since the client, the daemon and process 1 of every guest speak it.
//
// # Frames
//
// A frame is one byte of type, four bytes of length, big-endian, and as many
// bytes of payload, MaxPayload at most:
//
//	 type             payload                       sent by
//	 1 Stdin          bytes                         client
//	 2 StdinClose     none: end of file             client
//	 3 Resize         rows, columns; 2 bytes each   client
//	 4 Signal         its name: "SIGINT"            client
//	16 Stdout         bytes                         guest
//	17 Stderr         bytes                         guest
//	18 Exit           ExitStatus as JSON            guest, its last frame
//	19 Taken          how many bytes; 4 bytes       guest
//
// A process on a terminal has one stream, which travels as Stdout.
//
// # Conversation
//
// What is to be run is said in the request, so that whatever is wrong with it
// is answered as an HTTP error before the protocol is switched. Thereafter
// either side sends when it likes. Data may be split and joined anywhere. The
// guest sends Exit once everything that was written before the end was sent,
// and closes; a connection that ends without Exit was cut, and says nothing of
// the process. The connection is never half-closed: the end of the input is the
// frame StdinClose, and a client that closes has gone.
//
// A client that does not read stops the process that writes: there the
// connection's own flow control is enough. Input has a window besides, so that
// the guest always reads and hears of signals, and of the client's end, behind
// input that its process does not take: at most Window bytes may have been sent
// for which no Taken has come. Taken counts input that was given to the process,
// or thrown away since nobody wants it.
//
// Frames of an unknown type, and those that break these rules, are errors:
// another version has another Protocol.
package stdio
