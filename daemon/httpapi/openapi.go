package httpapi

import (
	"net/http"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/client/api/stdio"
)

// openapi describes the API in the form of OpenAPI 3.1, made from the route
// table and the Go types of bodies at each request: it is asked for rarely.
func (s *Server) openapi(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, describeRoutes(routes(), s.version))
	return nil
}

type object = map[string]any

// describeRoutes returns the OpenAPI document of a route table.
func describeRoutes(table []route, version string) object {
	schemas := schemaSet{}
	fail := object{
		"description": "not done; the code says what to do next",
		"content":     object{mediaJSON: object{"schema": schemas.of(reflect.TypeFor[api.ErrorBody]())}},
	}
	paths := object{}
	wildcard := regexp.MustCompile(`\{(\w+)(\.\.\.)?\}`)
	for _, rt := range table {
		path := wildcard.ReplaceAllString(rt.fullPath(), "{$1}")
		item, ok := paths[path].(object)
		if !ok {
			item = object{}
			paths[path] = item
		}
		methods := []string{rt.method}
		switch rt.method {
		case "":
			methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
		case http.MethodGet:
			methods = append(methods, http.MethodHead) // net/http answers it with the header alone
		}
		for i, m := range methods {
			id := rt.id
			if i > 0 {
				id += "_" + strings.ToLower(m)
			}
			op := operation(rt, schemas, fail)
			op["operationId"] = id
			var params []any
			for _, name := range wildcard.FindAllStringSubmatch(rt.fullPath(), -1) {
				params = append(params, object{"name": name[1], "in": "path", "required": true, "schema": object{"type": "string"}})
			}
			for _, q := range rt.query {
				params = append(params, object{"name": q.name, "in": "query", "description": q.doc, "schema": object{"type": q.kind}})
			}
			if m == http.MethodPost && rt.status != http.StatusSwitchingProtocols {
				params = append(params, object{"name": api.HeaderIdempotencyKey, "in": "header", "description": "does the request once, however often it is sent: the same request with the same key gets the first answer, for a day", "schema": object{"type": "string"}})
			}
			if rt.media == mediaSSE {
				params = append(params, object{"name": "Last-Event-ID", "in": "header", "description": "only events after this one", "schema": object{"type": "string"}})
			}
			if params != nil {
				op["parameters"] = params
			}
			item[strings.ToLower(m)] = op
		}
	}
	return object{
		"openapi":    "3.1.0",
		"info":       object{"title": "Volant", "version": version, "description": "The control plane of Volant. Events and logs are streams; all else is JSON."},
		"paths":      paths,
		"components": object{"schemas": schemas},
	}
}

func operation(rt route, schemas schemaSet, fail object) object {
	op := object{"summary": rt.summary}
	done := "done"
	if rt.status == http.StatusSwitchingProtocols {
		done = "the connection speaks " + stdio.Protocol + " from here on, which the request asks for by the header Upgrade"
	}
	ok := object{"description": done, "headers": object{
		api.HeaderVersion:   object{"description": "the daemon's version", "schema": object{"type": "string"}},
		api.HeaderRequestID: object{"description": "the request's id, also in the daemon's log", "schema": object{"type": "string"}},
	}}
	if rt.total {
		ok["headers"].(object)[api.HeaderTotalCount] = object{"description": "how many matched before limit and offset", "schema": object{"type": "integer"}}
	}
	replyMedia := mediaJSON
	if rt.media != "" {
		replyMedia = rt.media
	}
	if rt.upload != "" {
		op["requestBody"] = object{"required": true, "content": object{rt.upload: object{"schema": object{"type": "string", "format": "binary"}}}}
	}
	if rt.reply != nil {
		ok["content"] = object{replyMedia: object{"schema": schemas.of(reflect.TypeOf(rt.reply))}}
	}
	if rt.body != nil {
		op["requestBody"] = object{"required": !rt.bodyOpt, "content": object{mediaJSON: object{"schema": schemas.of(reflect.TypeOf(rt.body))}}}
	}
	op["responses"] = object{strconv.Itoa(rt.status): ok, "default": fail}
	return op
}

// schemaSet holds the JSON Schema of each named struct that was met.
type schemaSet map[string]any

// of returns the schema of t; structs are put into the set and referred to.
func (s schemaSet) of(t reflect.Type) object {
	switch t {
	case reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case reflect.TypeFor[api.VMState]():
		return object{"type": "string", "enum": api.VMStates()}
	case reflect.TypeFor[api.HealthStatus]():
		return object{"type": "string", "enum": api.HealthStatuses()}
	case reflect.TypeFor[api.VMDesired]():
		return object{"type": "string", "enum": []api.VMDesired{api.DesiredRunning, api.DesiredStopped, api.DesiredAbsent}}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return s.of(t.Elem())
	case reflect.Slice:
		return object{"type": "array", "items": s.of(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": s.of(t.Elem())}
	case reflect.Interface:
		return object{}
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Float32, reflect.Float64:
		return object{"type": "number"}
	case reflect.Uint, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return object{"type": "integer", "minimum": 0}
	case reflect.Int, reflect.Int32, reflect.Int64:
		return object{"type": "integer"}
	case reflect.Struct:
		return s.ofStruct(t)
	}
	panic("httpapi: no schema for " + t.String())
}

func (s schemaSet) ofStruct(t reflect.Type) object {
	name := strings.ToUpper(t.Name()[:1]) + t.Name()[1:]
	ref := object{"$ref": "#/components/schemas/" + name}
	if s[name] != nil {
		return ref
	}
	props, required := object{}, []string{}
	s[name] = object{} // ends the recursion of a type that holds itself
	for f := range t.Fields() {
		field, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if field == "" || field == "-" {
			continue
		}
		props[field] = s.of(f.Type)
		if !strings.Contains(opts, "omitempty") && !strings.Contains(opts, "omitzero") {
			required = append(required, field)
		}
	}
	schema := object{"type": "object", "properties": props}
	if len(required) > 0 {
		schema["required"] = required
	}
	s[name] = schema
	return ref
}
