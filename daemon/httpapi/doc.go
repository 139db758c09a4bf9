// Package httpapi serves the daemon's operations as REST under /api/v1: it
// decodes and checks requests, calls the Service, and encodes what comes back.
// It decides nothing, and sees the daemon through the Service interface that
// it declares.
//
// All routes stand in one table, in routes.go; the router, the check of query
// parameters and the OpenAPI description are made from it.
//
// # Bodies
//
// Requests carry application/json of at most api.MaxManifestSize bytes, except
// PUT /blobs and POST /images/load, which stream. A field or query parameter that a route does not
// know is refused. Every response that is not a success is an api.ErrorBody.
//
// # Streams
//
// GET /events is text/event-stream with the journal's sequence number as id,
// so that Last-Event-ID resumes it. GET /vms/{name}/logs is
// application/x-ndjson, and so are the answers of POST /images/pull and load, where
// empty objects are signs of life. An error after the first byte travels inside: as an
// event named "error", or as a line {"error": ...}. Every write has a deadline
// of its own, so a reader that stalls is dropped and one that reads may stay for
// ever.
//
// POST /vms/{name}/exec and /vms/{name}/attach switch the connection to
// stdio.Protocol and pass on what client and guest say to each other, without
// looking at it. What is wrong is said before the switch.
//
// # Connections
//
// Permission to open the Unix socket is permission to use the API. A request
// that arrives by TCP must name the host by address or as localhost and must not
// come from a page of another origin, so that a browser on the same machine
// cannot be made to speak for its user.
package httpapi
