package config

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// setting is one key of the configuration and the place of its value: a string,
// an int, a bool or a []string.
type setting struct {
	key   string
	value reflect.Value
}

// settings lists the keys of c in the order of the struct.
func settings(c *Config) []setting {
	var list []setting
	var walk func(prefix string, v reflect.Value)
	walk = func(prefix string, v reflect.Value) {
		for i := range v.NumField() {
			key := prefix + v.Type().Field(i).Tag.Get("toml")
			if f := v.Field(i); f.Kind() == reflect.Struct {
				walk(key+".", f)
			} else {
				list = append(list, setting{key, f})
			}
		}
	}
	walk("", reflect.ValueOf(c).Elem())
	return list
}

// decoder walks the syntax tree of one file. A plain strict Unmarshal would stop
// at the first value of a wrong type and could not tell the lines of the others.
type decoder struct {
	parser   unstable.Parser
	file     string
	known    map[string]reflect.Value
	origin   map[string]string
	seen     map[string]int // key -> line in this file
	problems []*Error
}

// decode sets the values of data in c and their places in origin.
func decode(data []byte, file string, c *Config, origin map[string]string) []*Error {
	d := &decoder{file: file, known: make(map[string]reflect.Value), origin: origin, seen: make(map[string]int)}
	for _, s := range settings(c) {
		d.known[s.key] = s.value
	}
	d.parser.Reset(data)
	table := ""
	for d.parser.NextExpression() {
		switch e := d.parser.Expression(); e.Kind {
		case unstable.Table:
			table, _ = d.name(e.Key())
		case unstable.ArrayTable:
			name, line := d.name(e.Key())
			d.report(line, name, "there are no arrays of tables here; write [%s]", name)
			table = name
		case unstable.KeyValue:
			d.keyValue(table, e)
		default: // a comment
		}
	}
	if err := d.parser.Error(); err != nil {
		line := 0
		if pe, ok := errors.AsType[*unstable.ParserError](err); ok && len(pe.Highlight) > 0 {
			line = d.parser.Shape(d.parser.Range(pe.Highlight)).Start.Line
		}
		d.report(line, "", "%s", strings.TrimPrefix(err.Error(), "toml: "))
	}
	return d.problems
}

func (d *decoder) report(line int, key, format string, args ...any) {
	where := d.file
	if line > 0 {
		where += ":" + strconv.Itoa(line)
	}
	d.problems = append(d.problems, &Error{Where: where, Key: key, Text: fmt.Sprintf(format, args...)})
}

// name joins a dotted key and tells its line.
func (d *decoder) name(key unstable.Iterator) (name string, line int) {
	var parts []string
	for key.Next() {
		n := key.Node()
		parts = append(parts, string(n.Data))
		line = d.parser.Shape(n.Raw).Start.Line
	}
	return strings.Join(parts, "."), line
}

func (d *decoder) keyValue(table string, e *unstable.Node) {
	key, line := d.name(e.Key())
	if table != "" {
		key = table + "." + key
	}
	value := e.Value()
	if value.Kind == unstable.InlineTable {
		for it := value.Children(); it.Next(); {
			d.keyValue(key, it.Node())
		}
		return
	}
	target, ok := d.known[key]
	if !ok {
		text := "there is no such key"
		if near := nearest(key, d.known); near != "" {
			text += "; did you mean " + near + "?"
		}
		d.report(line, key, "%s", text)
		return
	}
	if first, twice := d.seen[key]; twice {
		d.report(line, key, "is set twice, first in line %d", first)
		return
	}
	d.seen[key] = line
	if err := assign(target, value); err != nil {
		d.report(line, key, "%v", err)
		return
	}
	d.origin[key] = d.file + ":" + strconv.Itoa(line)
}

// assign sets target to what the node says.
func assign(target reflect.Value, n *unstable.Node) error {
	switch {
	case target.Kind() == reflect.String && n.Kind == unstable.String:
		target.SetString(string(n.Data))
		return nil
	case target.Kind() == reflect.Bool && n.Kind == unstable.Bool:
		target.SetBool(string(n.Data) == "true")
		return nil
	case target.Kind() == reflect.Int && n.Kind == unstable.Integer:
		i, err := strconv.ParseInt(string(n.Data), 0, 32)
		if err != nil {
			return fmt.Errorf("%s is too large", n.Data)
		}
		target.SetInt(i)
		return nil
	case target.Kind() == reflect.Slice && n.Kind == unstable.Array:
		list := []string{}
		for it := n.Children(); it.Next(); {
			if it.Node().Kind != unstable.String {
				return errors.New("want a list of strings")
			}
			list = append(list, string(it.Node().Data))
		}
		target.Set(reflect.ValueOf(list))
		return nil
	}
	want := map[reflect.Kind]string{
		reflect.String: "a string",
		reflect.Bool:   "true or false",
		reflect.Int:    "an integer",
		reflect.Slice:  "a list of strings",
	}[target.Kind()]
	return fmt.Errorf("want %s, got %s %q", want, strings.ToLower(n.Kind.String()), n.Data)
}

// nearest returns the known key that was probably meant, or nothing: the same
// name in another table, else the one with the fewest letters changed.
func nearest(key string, known map[string]reflect.Value) string {
	best, bestDistance := "", 1+max(2, len(lastPart(key))/4)
	for k := range known {
		distance := editDistance(lastPart(key), lastPart(k))
		// Ties go to the same table, then to the alphabet, not to the map's order.
		if distance < bestDistance || distance == bestDistance && best != "" && closer(key, k, best) {
			best, bestDistance = k, distance
		}
	}
	return best
}

func closer(key, a, b string) bool {
	da, db := editDistance(key, a), editDistance(key, b)
	return da < db || da == db && a < b
}

func lastPart(key string) string { return key[strings.LastIndexByte(key, '.')+1:] }

// editDistance is the number of letters to insert, delete or change.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
